"""The BoRA paper (arXiv 2508.06953): its tables and its claims."""
