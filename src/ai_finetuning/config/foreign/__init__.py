"""Run files of other tools (LLaMA-Factory, Axolotl, TRL) as ours: a table for each tool, and what they share."""
