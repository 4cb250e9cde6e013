"""What runs on a machine whose operating system is an image: slots, upgrades, health, rollback, state.

The rules are in `obelisk.model.host`, pure. This room finds the facts and applies what the rules ask for. It needs Python's standard
library alone, and the programs that every image has.
"""
