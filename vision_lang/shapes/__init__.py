"""The built-in world: scenes of simple objects, their pictures, their captions, and a judge."""
