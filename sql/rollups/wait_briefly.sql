-- wait_briefly: in this transaction, give up a lock rather than to make everybody who writes wait behind it.
--
-- result  none
-- index   none
SET LOCAL lock_timeout = '100ms'
