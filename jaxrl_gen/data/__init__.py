"""Recorded episodes: read, checked, held once on the device, and drawn from."""
