"""Random samples that merge: of tokens, documents, inputs, outputs and contexts."""
