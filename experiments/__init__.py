"""Experiments: run folders and strict configuration; this floor knows no method and no model.

`runs` is the contract of a run folder (what is written when, how a run goes on after a crash), `config` reads
and writes TOML against a frozen dataclass and refuses what it does not know. Both stand on `reports` alone.
"""
