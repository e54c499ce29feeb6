"""What tests share: learners, loops, what is recorded, what is refused"""
