"""One file, one method: `Config`, `State`, `make(cfg, spec) -> Algorithm`."""
