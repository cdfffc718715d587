"""The recipes that ship with the program: one YAML file each."""
