"""The run: configuration, the types that flow, the loop and the maths. Imports no engine."""
