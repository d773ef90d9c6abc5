"""Language models: recurrent, ELMo, BERT, GPT."""
