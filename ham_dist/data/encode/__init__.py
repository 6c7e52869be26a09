"""Raw values to ids, for preparing training data and for serving."""
