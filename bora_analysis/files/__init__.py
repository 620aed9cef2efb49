"""Files of adapters and models: tensors, keys, configurations, layouts."""
