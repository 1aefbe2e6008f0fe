"""Prompts to groups: vLLM engines on Ray, the prompt stream, chat templates per mode."""
