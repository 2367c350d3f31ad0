"""Reading and writing; the only place where foreign conventions are translated."""
