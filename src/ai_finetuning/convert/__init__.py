"""Models made from models: adapters merged, weights quantized."""
