"""What a careful person looks at before training: counts, copies, odd images, likely wrong labels."""
