"""Applications under a policy: what an image asks for and the operator grants becomes a launch plan, and that a confined process."""
