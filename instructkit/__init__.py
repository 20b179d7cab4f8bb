"""instructkit: the InstructGPT pipeline on Hugging Face TRL, as a command line and YAML recipes."""

__version__ = "0.1.0"
