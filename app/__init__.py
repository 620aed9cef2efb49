"""The dashboard: its pages, and what they share.

It is no part of the library's package: ``bora_analysis.bundled.app_package`` makes it importable for its own scripts.
"""
