-- analyze_records: tell the planner what a fill has put in; otherwise plans are bad until autovacuum comes round.
--
-- result  none
-- index   none
ANALYZE
users,
aibridge_interceptions,
aibridge_token_usages,
aibridge_user_prompts,
aibridge_tool_usages,
aibridge_model_thoughts
