-- What enrichments gave, as it is kept and sent. Table given: given (row, is_given, a column of each property).
CREATE TEMP TABLE enriched AS
WITH kept AS (
    SELECT row, is_given{{ enriched_values }} FROM given
),
texts AS (
    SELECT *{{ enriched_texts }} FROM kept
),
lengths AS (
    SELECT *{{ enriched_lengths }} FROM texts
),
cuts AS (
    SELECT *{{ enriched_cuts }} FROM lengths
)
SELECT *, {{ enriched_text }} AS enriched_text FROM cuts;
