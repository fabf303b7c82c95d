"""Turns on the device and on other threads."""
