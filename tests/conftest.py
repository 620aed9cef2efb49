from hypothesis import settings

# Derandomised: the same cases on every machine, so that a failure is a change and not a draw.
settings.register_profile("project", derandomize=True, deadline=None, print_blob=True)
settings.load_profile("project")
