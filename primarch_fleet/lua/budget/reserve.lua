-- Reserve money for tasks of one tenant: for all of them, or for none.
-- Keys and arguments: ledger.lua and reservation.lua.
-- Returns {'granted', now, a sum of grant bits for each task}, or {'refused', now, the limit that is
-- reached, what is left of it, what was missing}; nothing was reserved then.

local planned, refusal = plan(#ARGV)
return planned and commit(planned) or refusal
