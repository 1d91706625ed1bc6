"""Children that import torch, transformers or llamafactory, do one job and print one JSON line."""
