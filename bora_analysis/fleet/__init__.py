"""Many adapters: sweeps over them, and what only many can show.

:mod:`.results` says what a sweep leaves behind, and reads it.
"""
