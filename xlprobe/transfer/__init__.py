"""The transfer study: laboratories, cases, tables, claims, advice."""
