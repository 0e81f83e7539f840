SYNONYMS: dict[str, str] = {}
