import os

from hypothesis import settings

# The tests' models are tiny: a second thread gains nothing, and costs a hundredfold where the cores are shared.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# Derandomised: the same cases on every machine, so that a failure is a change and not a draw.
settings.register_profile("project", derandomize=True, deadline=None, print_blob=True)
settings.load_profile("project")

# The dashboard's server and a browser.
pytest_plugins = ["server_fixtures"]
