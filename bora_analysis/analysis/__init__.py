"""From updates to numbers and tidy tables."""
