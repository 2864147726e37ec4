"""Where processes run: Ray, the machine's resources, priorities, credentials and scratch folders."""
