"""The model service: content-addressed artifacts, model versions with lineage, predictions."""
