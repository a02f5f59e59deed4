"""Environments: adaptors of simulators (imported lazily), wrappers, and tiny probes whose answers are known."""
