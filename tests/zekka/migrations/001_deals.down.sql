DROP TABLE deals;
DROP TABLE users;
