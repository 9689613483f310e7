"""Help for prompts that the policy cannot solve yet: where it comes from, and how it enters a group."""
