"""From a configuration file, a directory or a hub id to an Architecture."""
