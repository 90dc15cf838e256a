"""Router confidence: entropy, margins and top-1 probability of the router."""
