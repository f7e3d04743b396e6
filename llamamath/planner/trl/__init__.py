"""A Job as the exact arguments of TRL's, PEFT's and transformers' configurations."""
