"""What a run leaves behind for people: the run folder, its tables and its pictures."""
