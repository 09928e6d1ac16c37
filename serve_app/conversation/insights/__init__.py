"""What a conversation is about, how it feels, who asks and who answers: computed from facts about its messages.

In the order in which it is best read. All but the last are pure functions; an insight needs no text, only facts.

message.py      the facts of one message, from its text and its vector
topics.py       where the topic shifts, the segments in between, and their labels
sentiment.py    how the messages feel, and where that turns
engagement.py   times, lengths, questions and what became of them
flow.py         from topic to topic, from question to answer
conversation.py the four of one conversation, put together
overview.py     the same over many conversations, as aggregates
gather.py       the facts of a conversation: those that are kept, and those that are still to be computed
"""
