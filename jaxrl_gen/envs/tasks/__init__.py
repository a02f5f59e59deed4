"""The project's own tasks, one file each, beside its MJCF."""
