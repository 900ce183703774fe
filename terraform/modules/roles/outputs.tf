output "instance_profile" {
  description = "Name of the instance profile of nodes."
  value       = aws_iam_instance_profile.node.name
  depends_on  = [aws_iam_role_policy.node]
}

output "node_role_id" {
  description = "Unique id of the node role: the first part of every mailbox's name."
  value       = aws_iam_role.node.unique_id
}

output "creator_role_arn" {
  description = "The role of flows and keepers."
  value       = aws_iam_role.creator.arn
  depends_on  = [aws_iam_role_policy_attachment.creator]
}

output "reaper_role_arn" {
  description = "The role of the reaper."
  value       = aws_iam_role.reaper.arn
  depends_on  = [aws_iam_role_policy_attachment.reaper]
}

output "ending_policy_arn" {
  description = "The policy that looks and ends; the dead-man has it and nothing else."
  value       = aws_iam_policy.ending.arn
}
