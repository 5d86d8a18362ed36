"""The flow over dvc.yaml in Prefect, and the servers around it."""
