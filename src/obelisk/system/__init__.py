"""The only room that touches the operating system: commands, namespaces, durable files. One file per external program."""
