namespace pymtg {}
