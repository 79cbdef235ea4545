"""What is to be known of a decoder beyond its headers: shapes and names of the families, and where a block's basis may change."""
