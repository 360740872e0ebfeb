-- lock_interceptions: wait until nobody who writes interceptions is in the middle of it, and hold off those who come next,
-- until the transaction ends. They have this lock before they see anything.
--
-- result  none
-- index   none
LOCK TABLE aibridge_interceptions IN SHARE MODE
