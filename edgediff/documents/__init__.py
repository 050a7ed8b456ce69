"""What people and machines write down: recipe, target, plan, the words of weight formats, and their JSON Schemas."""
