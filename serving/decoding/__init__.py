"""Turns files from strangers into pixels, in a child process that can be killed."""
