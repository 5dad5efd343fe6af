"""Parts of an answer: room in the queue, what the scores say, explanations."""
