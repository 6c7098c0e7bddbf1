"""Steering: profiles and their store, interventions, learning methods and the vLLM plugin."""
