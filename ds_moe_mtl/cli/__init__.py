"""The ds-moe-mtl command: one file a command."""
